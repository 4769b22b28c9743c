"""What one tenant may have of the server itself, at once and for long."""

from __future__ import annotations

from dataclasses import dataclass

from sandbox.limits import MIB, limit


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """Limits of one tenant."""

    tenant_sessions: int = limit(
        10_000,
        least=1,
        most=1_000_000,
        unit="sessions",
        doc="Sessions of one tenant, those that hibernate included.",
    )
    tenant_snapshots: int = limit(
        10_000,
        least=0,
        most=1_000_000,
        unit="snapshots",
        doc="Snapshots of one tenant's sessions. More are refused.",
    )
    tenant_runs: int = limit(
        48, least=1, most=1_024, unit="runs", doc="Runs of one tenant at work at once. Its others wait."
    )
    tenant_waiting_runs: int = limit(
        1_000,
        least=0,
        most=100_000,
        unit="runs",
        doc="Runs of one tenant that wait for their turn. More are refused.",
    )
    tenant_continuable_runs: int = limit(
        16,
        least=0,
        most=100_000,
        unit="runs",
        doc="Runs of one tenant that have succeeded and can be continued: the newest. Of others no state stays.",
    )
    tenant_requests: int = limit(
        256,
        least=1,
        most=10_000,
        unit="requests",
        doc="Calls of one tenant to this server under way at once, open streams included. More are refused.",
    )
    tenant_streams: int = limit(
        128, least=1, most=10_000, unit="streams", doc="Open streams of one tenant. More are refused."
    )
    tenant_uploads: int = limit(
        64, least=1, most=10_000, unit="uploads", doc="Uploads of one tenant that are not finished. More are refused."
    )
    tenant_contexts: int = limit(
        1_000_000,
        least=0,
        most=100_000_000,
        unit="contexts",
        doc="Contexts of one tenant, unfinished uploads included. More are refused.",
    )
    tenant_accounts: int = limit(
        100_000,
        least=0,
        most=10_000_000,
        unit="accounts",
        doc="Accounts of one tenant's customers, closed ones included. More are refused.",
    )
    tenant_held_bytes: int = limit(
        256 * MIB,
        least=MIB,
        most=1 << 40,
        unit="bytes",
        doc="Memory of the server that one tenant has at once: requests, queues, remembered results and answers, texts "
        "of children. What would take more is refused.",
    )
    tenant_kept_bytes: int = limit(
        4096 * MIB,
        least=MIB,
        most=1 << 50,
        unit="bytes",
        doc="Events, questions and answers of one tenant's runs in the database. A run that would keep more ends, and "
        "no more are started.",
    )
    context_bytes: int = limit(
        100 << 30,
        least=0,
        most=1 << 50,
        unit="bytes",
        doc="Contexts of one tenant together, in UTF-8; equal ones count once, and unfinished uploads as announced. "
        "Where a text has wider characters, up to four times as much is stored. More are refused.",
    )
    context_retention_days: float = limit(
        0.0,
        least=0,
        most=36_500,
        unit="days",
        doc="A context that nobody has used for so long, nor holds, is removed; 0 keeps all for ever.",
    )
    run_retention_days: float = limit(
        0.0,
        least=0,
        most=36_500,
        unit="days",
        doc="A run that ended so long ago is removed, with its question, events and answers; what it spent stays in "
        "the ledger. 0 keeps all for ever.",
    )
