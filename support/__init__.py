"""The machinery below the method: skip it on a first reading."""
