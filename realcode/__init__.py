"""Published models and your own code: the commands of empower.py."""
