"""The method on your own code and models: the commands of empower.py."""
