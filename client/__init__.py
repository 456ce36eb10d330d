"""What runs inside a hospital; it never imports the server."""
