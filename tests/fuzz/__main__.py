"""``python -m tests.fuzz [codec|http|config ...] [--inputs N] [--first N] [--seed S]``: the long form of `test_fuzz.py`."""

from __future__ import annotations

import argparse
import logging
import sys
from contextlib import nullcontext

from tests.fuzz import codec_inputs, config_inputs, http_inputs
from tests.fuzz.harness import drive

JUDGES = {
    "codec": lambda: nullcontext(codec_inputs.one),
    "http": http_inputs.judge,
    "config": config_inputs.judge,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("what", nargs="*", default=[], choices=[*JUDGES, []])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first input: a long run in pieces")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # the endpoint logs each refusal, a hundred thousand times
    for name in options.what or JUDGES:
        with JUDGES[name]() as one:
            print(drive(one, options.inputs, seed=options.seed, first=options.first).line(name), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
