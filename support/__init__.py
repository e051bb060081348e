"""The machinery below the method: skip it at first reading."""
