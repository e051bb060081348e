"""How a request is refused, and how its fields are read."""

import math


class Refused(Exception):
    """A request that cannot be answered: an HTTP status, and one sentence for whoever sent it."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


def field(body, name, kind, default=None, least=-math.inf, most=math.inf):
    """body[name], which must be of this kind (str, int, float, bool, list, dict) and in range.

    default: for a field that is absent or null; without one it must be there. 16.0 is an int.
    """
    value = body.get(name) if isinstance(body, dict) else None
    if value is None:
        if default is None:
            raise Refused(400, f"the request lacks {name}")
        return default
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    kinds = (int, float) if kind is float else kind
    if not isinstance(value, kinds) or isinstance(value, bool) != (kind is bool):
        raise Refused(400, f"{name} is not of type {kind.__name__}")
    if kind in (int, float) and not (abs(value) <= 1e300 and least <= value <= most):
        raise Refused(400, f"{name} is {value}: give a number from {least} to {most}")
    return value
