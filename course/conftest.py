"""Tests of this folder find the files next to them and those of the project."""

import sys
from pathlib import Path

sys.path[:0] = map(str, Path(__file__).resolve().parents[:2])
