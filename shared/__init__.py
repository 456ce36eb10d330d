"""What hospitals and coordinator both need: plan, protocol, models, keys."""
