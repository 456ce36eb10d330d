"""What the coordinator runs; it never imports the hospital side."""
