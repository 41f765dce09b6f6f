"""What a run found, as a table."""

from rich.console import Console
from rich.table import Table

from tests.chaos.crash_loop import Report


def table(report: Report) -> Table:
    """Return the closing table of a crash loop."""
    verdict = report.verdict
    kills = ", ".join(f"{count} {name}" for name, count in sorted(report.kills.items()))
    statuses = ", ".join(f"{n} x {status or 'none'}" for status, n in report.statuses.items())
    rows = {
        "kills": f"{report.kills.total()} ({kills}) in {report.seconds:.0f} s",
        "acknowledged": f"{verdict.acked}, {report.retried} of them after retries",
        "lost": str(verdict.lost),
        "trained twice": str(verdict.doubled + verdict.repeated),
        "learned + quarantined": f"{verdict.learned} + {verdict.quarantined}",
        "killed three times while learned": f"{verdict.innocent} (quarantined)",
        "bit-equal to an uninterrupted run": "yes" if verdict.same_state else "NO",
        "answers of /observe": statuses,
        "/observe p50, p99": "{:.0f}, {:.0f} ms".format(*report.observe_ms),
        "/observe again after a restart": f"<= {report.observe_again_s:.1f} s",
        "/predict failed while the API lived": f"{len(report.predict_failures)} of {report.asked}",
        "/predict p50, p99": "{:.0f}, {:.0f} ms".format(*report.predict_ms),
        "/predict again after a restart": f"<= {report.predict_again_s:.1f} s",
        "violations": "; ".join(report.violations) or "none",
    }
    made = Table("what", "found", title="crash loop")
    for what, found in rows.items():
        made.add_row(what, found)
    return made


def show(report: Report) -> None:
    """Print the closing table."""
    Console(width=110).print(table(report))


def say(measured: str) -> None:
    """Print one figure."""
    Console(width=110, highlight=False).print(measured)
