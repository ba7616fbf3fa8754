"""A pytest plugin: every test's result is a line of JSON in the file that REPORT_LINES names, as soon as it is known.

A run that is cut off keeps what it had. With several processes the first one writes, for all.
"""

import json
import os

_LONGEST = 2000


def pytest_runtest_logreport(report) -> None:
    """Write the outcome of a test, or of its set-up where that failed or skipped it."""
    if report.when != "call" and report.passed:
        return
    if os.environ.get("PYTEST_XDIST_WORKER"):
        return
    line = dict(test=report.nodeid, outcome=report.outcome, seconds=round(report.duration, 2))
    if report.failed:
        line["message"] = report.longreprtext[-_LONGEST:]
    with open(os.environ["REPORT_LINES"], "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
