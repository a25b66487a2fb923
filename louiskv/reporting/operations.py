"""How fast single operations are, beside what the machine could do at best."""

from louiskv.reporting.content import Section, Table, number, origins, text
from louiskv.reporting.records import Measured, Record, grouped, machine

TELLS = (
    "Bytes that an operation must move at the least, products that it must compute at the least. Of roofline: what the "
    "machine could do at best, over the time it took; none where it lies in the cache, or moves so little that a call "
    "takes longer. Faster: than plain torch."
)


def operations(model: Measured) -> Section | None:
    """A table of the operations for each machine."""
    machines = grouped(model.of("operation"), machine)
    parts = [_table(name if len(machines) > 1 else "", records) for name, records in machines.items()]
    told = "Each operation with inputs of these shapes, its implementations in turns."
    return Section("operations", "Operations", told, [*parts]) if parts else None


def _table(title: str, records: list[Record]) -> Table:
    columns = ["operation", "implementation", "budget", "context", "batch", "us", "least quarter", "greatest quarter"]
    columns += ["faster", "GB/s", "GFLOP/s", "of roofline", "bound by", "timed by"]
    rows = [
        [
            text(record["base"]),
            text(record["impl"]),
            text(record["budget"]),
            text(record["context"]),
            text(record["batch"]),
            number(record["microseconds"], ".1f"),
            *(number(each, ".1f") for each in record["quartiles"]),
            number(record["faster"]),
            number(record["bytes_per_second"] / 1e9),
            number(record["flops_per_second"] / 1e9),
            number(record["share"], ".0%"),
            text(record["limit"]),
            text(record["timed_by"]),
        ]
        for record in records
    ]
    return Table(title, columns, rows, TELLS, origins(records))
