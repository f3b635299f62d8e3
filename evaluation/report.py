"""The measures as a Markdown table and as one HTML page that holds everything, pictures included."""

import base64
import io
import math
from html import escape

from .hallucination import objects_of

THUMBNAIL = 224  # pixels
STYLE = """
body { font: 15px/1.6 system-ui, "Noto Sans CJK SC", "Microsoft YaHei", sans-serif; margin: 2em auto; max-width: 96em; padding: 0 1em; color: #222; background: #fff }
h1, h2 { line-height: 1.25 } h2 { margin-top: 2em }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3em .8em; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
th { white-space: normal; min-width: 5.5em; vertical-align: bottom }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff } small { color: #777; display: block }
.classes { display: flex; flex-wrap: wrap; gap: 0 3em } h2 { font-size: 1.25em } summary { cursor: pointer; margin: 1em 0 }
.warning { border-left: 4px solid #c33; background: #fdf0ef; padding: .6em 1em }
p { overflow-wrap: anywhere } .bar { background: #eee; width: 6em; height: .8em; display: inline-block; vertical-align: middle } .bar i { display: block; height: 100%; background: #3572b0 }
.bar.bad i { background: #c4554d }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(30em, 1fr)); gap: 1.2em }
.card { border: 1px solid #ddd; border-radius: 6px; padding: .8em; display: flex; gap: .9em; align-items: flex-start } .card img { width: 9em; flex: none; image-rendering: auto }
.card p { margin: 0 0 .5em; max-height: 12em; overflow: auto } .card b { color: #555; font-weight: 600 } mark { background: #f6c1bc }
@media (max-width: 40em) { .gallery { grid-template-columns: 1fr } .card { flex-direction: column } }
"""


def number(value):
    return "-" if math.isnan(value) else f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def markdown(head, rows):
    """A list of texts and lists of as many texts -> a Markdown table with straight columns."""
    head, *rows = [[text.replace("|", "\\|") for text in line] for line in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths)) + " |"
        for line in lines
    )


def thumbnail(image):
    """PIL RGB image -> data URI of a small JPEG."""
    small, buffer = image.copy(), io.BytesIO()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    small.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def marked(text, known):
    """HTML of an answer, its hallucinated objects marked."""
    html, last = "", 0
    for start, end, name in sorted(
        (start, end, name) for name, start, end, right in objects_of(text, known) if not right
    ):
        html += f'{escape(text[last:start])}<mark title="{escape(name)}">{escape(text[start:end])}</mark>'
        last = end
    return html + escape(text[last:])


def bars(shares, better):
    """[(label, share in %, count)] -> HTML table with a bar each."""
    kind = "bar" if better else "bar bad"
    return (
        "<div class='scroll'><table>"
        + "".join(
            f"<tr><td>{escape(label)}</td><td>{count}</td><td>{number(share)} %</td><td><span class='{kind}'><i style='width:{share:.1f}%'>"
            "</i></span></td></tr>"
            for label, share, count in shares
        )
        + "</table></div>"
    )


def html_table(columns, rows):
    """columns: names of systems; rows: [(measure, {column: (value, interval)})] of texts."""
    lines = [
        "<div class='scroll'><table><tr><th>measure</th>"
        + "".join(f"<th>{escape(name)}</th>" for name in columns)
        + "</tr>"
    ]
    for name, cells in rows:
        found = [cells.get(column, ("-", "")) for column in columns]
        lines.append(
            f"<tr><td>{escape(name)}</td>"
            + "".join(f"<td>{value}<small>{interval}</small></td>" for value, interval in found)
            + "</tr>"
        )
    return "\n".join(lines) + "</table></div>"


def html_page(*, title, lines, warnings, columns, rows, others, classes, cards):
    """The whole report. lines: what was measured how; warnings: what is wrong with a system; columns, rows: as in
    html_table(), others: rows that are folded away; classes: [(heading, better, [(label, share, count)])]; cards: [(image, name,
    references, [(system, text)], Truth)]."""
    parts = [
        f"<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style><h1>{escape(title)}</h1>"
    ]
    parts += [f"<p class='warning'>{escape(text)}</p>" for text in warnings]
    parts += [
        "<h2>Measures</h2>",
        html_table(columns, rows),
        "<details><summary>all other measures</summary>",
        html_table(columns, others),
        "</details>",
    ]
    parts += [f"<p>{escape(line)}</p>" for line in lines]
    parts.append("<div class='classes'>")
    parts += [
        f"<div><h2>{escape(heading)}</h2>{bars(shares, better)}</div>"
        for heading, better, shares in classes
    ]
    parts.append(
        "</div><h2>Answers, the worst first</h2><p>Marked: objects that no reference names.</p><div class='gallery'>"
    )
    for image, name, references, answers, known in cards:
        parts.append(
            f"<div class='card'><img alt='{escape(name)}' src='{thumbnail(image)}'><div><p><b>{escape(name)}</b></p>"
        )
        parts += [
            f"<p><b>{escape(system)}</b> {marked(text, known) or '(empty)'}</p>"
            for system, text in answers
        ]
        parts.append(
            "<p><b>references</b> " + "<br>".join(map(escape, references)) + "</p></div></div>"
        )
    parts.append("</div></html>")
    return "\n".join(parts)
