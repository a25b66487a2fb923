"""Tables: what is too wide for the terminal goes into several, each with its rows named."""

from rich.console import Console

from louiskv.cli.tables import tables


def test_wide_tables_are_cut_between_columns() -> None:
    columns = ["score", "budget", *(f"longbench_{number}" for number in range(9))]
    rows = [["full", "-", *["0.50"] * 9], ["louiskv", "512", *["0.25"] * 9]]
    made = list(tables(columns, rows, 60))
    assert [[column.header for column in each.columns[2:]] for each in made] == [
        ["longbench_0", "longbench_1", "longbench_2"],
        ["longbench_3", "longbench_4", "longbench_5"],
        ["longbench_6", "longbench_7", "longbench_8"],
    ]
    console = Console(width=60)
    for each in made:
        with console.capture() as printed:
            console.print(each)
        assert [line.split()[0] for line in printed.get().splitlines() if line.strip(" ─")] == [
            "score",
            "full",
            "louiskv",
        ]


def test_a_column_that_fits_nowhere_has_a_table_of_its_own() -> None:
    made = list(tables(["score", "budget", "a" * 90, "b"], [["full", "-", "1", "2"]], 40))
    assert [len(each.columns) for each in made] == [3, 3]


def test_names_of_columns_wrap_before_a_table_is_cut() -> None:
    (made,) = tables(["score", "budget", "fetched a token", "as full"], [["full", "-", "1", "2"]], 36)
    console = Console(width=36)
    with console.capture() as printed:
        console.print(made)
    assert "token   full" in printed.get()


def test_no_figure_is_broken_where_there_is_hardly_room() -> None:
    columns = ["method", "budget", "retrievals", "fetched a token"]
    rows = [["louiskv", "64", "0.85", "543.2 KiB"]]
    for width in range(20, 60):
        console = Console(width=width)
        with console.capture() as printed:
            for made in tables(columns, rows, width):
                console.print(made)
        assert "543.2 KiB" in printed.get() or width < 32
        assert "retrievals" in printed.get() or width < 32


def test_a_name_of_two_lines_takes_the_room_of_the_longer() -> None:
    (made,) = tables(["", "ms per token"], [["each query head selects, at every step", "77.2"]], 36, kept=1)
    console = Console(width=36)
    with console.capture() as printed:
        console.print(made)
    assert [line.split() for line in printed.get().splitlines()[-3:-1]] == [
        ["each", "query", "head", "selects,", "77.2"],
        ["at", "every", "step"],
    ]


def test_a_long_name_wraps_where_it_may() -> None:
    name = 'louiskv_plus:trigger="cosine",tau=0.7'
    for width, lines in ((72, ["louiskv_plus:", 'trigger="cosine",tau=0.7']), (150, [name])):
        (made,) = tables(["", "ms"], [["full", "9.5"], [name, "9.9"]], width, kept=1)
        assert list(made.columns[0].cells) == ["full", "\n".join(lines)]
