"""The starts of a recorder in a log: what a preamble lacks comes from an earlier one, except for its date."""

from __future__ import annotations

from ciml.dstat import epoch_us, split_segments

HEADER = b'"system","load avg"\n"time","1m"\n24-11 12:00:00,1\n'


def test_a_start_has_the_lines_of_its_own_preamble_or_of_an_earlier_one() -> None:
    log = b'"dool 1.3.8 CSV output"\n"Cmdline:","dool -t 5",,,,"Date:","24 Nov 2026 12:00:00 CET"\n' + HEADER * 2
    log += b'"Cmdline:","dool -t 7",,,,"Date:","25 Nov 2026 12:00:00"\n' + HEADER
    log += b'"Date:","31 Dec 9999 12:00:00 UTC"\n' + HEADER
    first, second = (epoch_us(2026, 11, day, 12) for day in (24, 25))
    assert [
        (segment.recorder, segment.interval_s, segment.zone, segment.date_us, segment.near_us)
        for segment in split_segments(log)
    ] == [
        ("dool 1.3.8", 5.0, "CET", first, first),
        ("dool 1.3.8", 5.0, "CET", None, first),
        ("dool 1.3.8", 7.0, "", second, second),
        ("dool 1.3.8", 7.0, "UTC", None, epoch_us(9999, 12, 31, 12)),
    ]


def test_a_start_after_many_rows_has_all_lines_of_its_preamble() -> None:
    preamble = b'"dool 2.0.0 CSV output"\n"Author:","a",,,,"URL:","u"\n"Host:","h",,,,"User:","u"\n'
    preamble += b'"Cmdline:","dool -t 9",,,,"Date:","25 Nov 2026 12:00:00 UTC"\n'
    rows = b"24-11 12:00:01,1\n" * 9
    log = b'"dool 1.3.8 CSV output"\n' + HEADER + rows + preamble + HEADER
    assert [(segment.recorder, segment.interval_s) for segment in split_segments(log)][1] == ("dool 2.0.0", 9.0)
