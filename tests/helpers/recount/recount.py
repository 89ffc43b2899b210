"""Every number of a sweep's report.md, and of the CSVs beside it, computed again from the sweep's files.

`python tests/helpers/recount/recount.py DIR` prints a line for each printed number that is not the recomputed one, and
for each number of the page that nothing here accounts for; its exit code is 1 if there are any. Nothing of the product is
used: definitions are those of the README and of the report's own notes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from printed_page import NUMBER
from recount_beside import Beside
from recount_gains import Gains
from recount_margin import Margins
from recount_tables import Tables
from recount_verdict import Verdicts
from recount_words import Words
from sweep_files import Sweep


class Recount(Words, Verdicts, Gains, Tables, Margins, Beside):
    def run(self) -> list[str]:
        self.files()
        self.bare_files()
        self.title()
        self.verdict()
        self.setup()
        self.bare()
        self.confirmed()
        self.chosen()
        self.soup()
        self.metrics()
        self.quantizers()
        self.full_precision()
        self.margin()
        self.leaderboard()
        self.pareto()
        self.importances()
        self.budget()
        self.pruned()
        self.endings()
        self.problems()
        self.constants()
        self.figures()
        self.tables()
        return self.page.wrong + self.page.rest()


def recount(folder: Path | str, sweep: Sweep | None = None) -> list[str]:
    """A line for each number of the sweep's report that is not the recomputed one, or that nothing accounts for.

    sweep: what the folder's trials come to, where that is known already; None: it is read.
    """
    return Recount(Path(folder), sweep).run()


def main(folders: list[str]) -> int:
    wrong = 0
    for folder in folders:
        of = Recount(Path(folder))
        lines = of.run()
        wrong += len(lines)
        total = len(NUMBER.findall(of.page.text))
        for line in lines:
            print(f"{folder}: {line}")
        print(f"{folder}: {total} numbers on the page, {of.page.checked} checks, {len(lines)} lines of what is wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
