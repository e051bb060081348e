"""python page/load.py ADDRESS: how long suggestions take when a class types at once.

Each of 30 editors types programs, one key after the other, and asks after every key. Prints the
median and the 95% latency; ADDRESS is that of a running page on this machine.
"""

import argparse
import json
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support.cli import Parser, UserError, plain_errors

EDITORS, KEYS, PAUSE = 30, 40, 0.2  # people, keys that each presses, seconds between two keys


def ask(address, path, body=None):
    """The JSON that the page answers."""
    request = urllib.request.Request(address.rstrip("/") + path, body and json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def type_program(address, number, about, seconds):
    """One editor: it types a program from some place on."""
    text = about["texts"][number % len(about["texts"])]["text"]
    begin = 7 * number % max(1, len(text) - KEYS)
    name = about["assistants"][number % 2]["name"]
    for k in range(begin, begin + KEYS):
        start = time.monotonic()
        try:
            ask(address, "/api/suggest", {"client": f"load {number}", "assistant": name,
                                          "text": text[:k]})
        except OSError:
            return  # this one and those after it are lost
        seconds.append(time.monotonic() - start)
        time.sleep(max(0, PAUSE - seconds[-1]))


def main():
    """The command line."""
    parser = Parser(prog="page/load.py", description=__doc__.split("\n\n")[0],
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="as printed by python empower.py page")
    args = parser.parse_args()
    with plain_errors("page/load.py"):
        try:
            about = ask(args.address, "/api/about")
            if "texts" not in about:
                raise ValueError("it serves a study")
        except (OSError, ValueError) as error:
            raise UserError(f"{args.address} does not answer ({error}): start python empower.py "
                            "page, and give the address that it prints") from None
        seconds = []
        threads = [threading.Thread(target=type_program, args=(args.address, k, about, seconds))
                   for k in range(EDITORS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if len(seconds) < EDITORS * KEYS:
            raise UserError(f"only {len(seconds)} of {EDITORS * KEYS} requests were answered: see "
                            "the terminal of the page")
        median, late = np.quantile(seconds, [0.5, 0.95])
        print(f"{EDITORS} editors, {len(seconds)} of {EDITORS * KEYS} requests answered: median "
              f"{1000 * median:.0f} ms, 95% within {1000 * late:.0f} ms")


if __name__ == "__main__":
    sys.exit(main())
