"""The end of a night: report, page, what Prefect shows of them, and the commit.

What is written in which order so that it is safe stands in tasks/night/publish.py.
"""

import contextlib
import dataclasses
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from flows.console import WorkFailed
from flows.run_context import NightRun, as_prefect_task, stage_of
from flows.settings import RunSettings
from tasks.night import publish
from tasks.night.runs import clear_work
from tasks.report import summary
from tasks.stores.base import AlreadyExists, StoreError


class FailedRows(Exception):
    """The run is complete and committed, but --strict does not want its failed rows."""

    def __init__(self, manifest: dict):
        failed = manifest["counts"]["failed"]
        super().__init__(f"--strict: {failed} objects failed; run {manifest['run_id']} is complete otherwise")
        self.manifest = manifest


def finish(run: NightRun, listed: pa.Table, decided: pa.Table, catalog: pa.Table, gone: np.ndarray) -> dict:
    """Report, page, artifacts, then the manifest."""
    night, dest = run.night, run.dest
    with stage_of(run, "report") as record:
        rows, whole = publish.whole_state(listed, decided, catalog, gone)
        publish.check_state(whole)
        about = as_prefect_task(
            "report", "report and catalog", lambda: publish.write_tables(dest, night.run_id, rows, whole, run.source)
        )
        record["objects"] = rows.num_rows
    report = publish.report_table(rows)
    manifest = publish.manifest_of(
        run_id=night.run_id, source=night.source, started=run.started,
        finished=datetime.now(UTC).isoformat(timespec="milliseconds"), config=configuration(run.settings), rows=rows,
        state=whole, removable=about, base=run.base["run_id"] if run.base else None,
        models=sorted(set(filter(None, pc.unique(whole["model"]).to_pylist()))), stages=run.stages,
        workers=run.workers.width if run.workers else 0, deadline_reached=run.late,
    )  # fmt: skip
    with stage_of(run, "page"):
        as_prefect_task("report", "HTML page", lambda: write_page(run, report, manifest))
        show_in_prefect(run, report, manifest)
    run.lease.check()
    manifest["finished"] = datetime.now(UTC).isoformat(timespec="milliseconds")
    try:
        as_prefect_task("commit", f"commit {night.run_id}", lambda: publish.commit(dest, manifest))
    except AlreadyExists:
        raise WorkFailed(f"run {night.run_id} was committed by somebody else; nothing was overwritten") from None
    run.log("committed", **{name: manifest[name] for name in ("objects", "source_bytes", "stored_bytes", "counts")})
    run.save_log()
    with contextlib.suppress(StoreError):  # what is left over is only litter
        clear_work(dest, night)
    if run.settings.strict and manifest["counts"]["failed"]:
        raise FailedRows(manifest)
    return manifest


def configuration(settings: RunSettings) -> dict:
    """Every option's value, for the manifest."""
    values = {one.name: getattr(settings, one.name) for one in dataclasses.fields(settings)}
    return {
        name: value if isinstance(value, str | int | float | bool | None) else
        list(value) if isinstance(value, tuple) else str(value)
        for name, value in values.items()
    }  # fmt: skip


def write_page(run: NightRun, report: pa.Table, manifest: dict) -> None:
    """The HTML page; drawn by a worker where there are any, since that loads the codec."""
    from tasks.report import page

    html, parts = None, (report, manifest, run.source, run.dest)
    if run.workers and not run.workers.gpus:
        from distributed import KilledWorker

        with contextlib.suppress(KilledWorker):
            html = run.workers.client.submit(page.build, *parts, pure=False).result()
    publish.write_page(run.dest, manifest["run_id"], html or page.build(*parts))


def show_in_prefect(run: NightRun, report: pa.Table, manifest: dict) -> None:
    """Summary, the ten largest savings and the link, as artifacts of the flow run."""
    words = summary.text(report, manifest)
    create_markdown_artifact(f"```\n{words}\n```", key="nightpress-summary", description=f"run {manifest['run_id']}")
    columns = ("key", "status", "source_bytes", "stored_bytes", "saved_bytes")
    top = [{name: row.get(name) for name in columns} for row in summary.largest(report, 10)]
    create_table_artifact(top, key="nightpress-largest-savings", description="The ten largest savings")
    place = run.dest.place(f"{run.night.folder}report.html")
    link = place if "://" in place else f"file://{place}"
    create_link_artifact(link, key="nightpress-report", link_text="HTML report", description=place)
