"""The method on a person's own code and models: the commands of empower.py."""
