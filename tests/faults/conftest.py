"""The parts of the universe are found as ``faults``, from the command and from pytest alike."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = str(Path(__file__).resolve().parents[1])

if TESTS not in sys.path:
    sys.path.append(TESTS)
