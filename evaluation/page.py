"""report.html: one HTML page that holds everything, images included."""

from html import escape
from pathlib import Path

from model.images.encoding import data_uri

from .hallucination import Truth, hallucinated
from .score import ClassShares, Scores, worst_first
from .tables import Row, column_order, main_rows, metric_rows, number

THUMBNAIL = 224  # pixels
STYLE = """
body {
  font: 15px/1.6 system-ui, "Noto Sans CJK SC", "Microsoft YaHei", sans-serif;
  margin: 2em auto; max-width: 96em; padding: 0 1em; color: #222; background: #fff;
}
h1, h2 { line-height: 1.25 }
h2 { font-size: 1.25em; margin-top: 2em }
p { overflow-wrap: anywhere }
small { color: #777; display: block }
summary { cursor: pointer; margin: 1em 0 }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td {
  padding: .3em .8em; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap;
}
th { white-space: normal; min-width: 5.5em; vertical-align: bottom }
th:first-child, td:first-child {
  text-align: left; position: sticky; left: 0; background: #fff;
}
.warning { border-left: 4px solid #c33; background: #fdf0ef; padding: .6em 1em }
.classes { display: flex; flex-wrap: wrap; gap: 0 3em }
.bar {
  background: #eee; width: 6em; height: .8em; display: inline-block; vertical-align: middle;
}
.bar i { display: block; height: 100%; background: #3572b0 }
.bar.bad i { background: #c4554d }
.gallery {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(30em, 1fr)); gap: 1.2em;
}
.card {
  border: 1px solid #ddd; border-radius: 6px; padding: .8em;
  display: flex; gap: .9em; align-items: flex-start;
}
.card img { width: 9em; flex: none; image-rendering: auto }
.card p { margin: 0 0 .5em; max-height: 12em; overflow: auto }
.card b { color: #555; font-weight: 600 }
mark { background: #f6c1bc }
@media (max-width: 40em) {
  .gallery { grid-template-columns: 1fr }
  .card { flex-direction: column }
}
"""


def html_page(scores: Scores, notes: list[str], gallery: int = 0) -> str:
    """The whole report.

    notes: what was measured how, a paragraph each; gallery: how many images are shown, those that
    the last system describes worst, 0 for all.
    """
    title = escape(f"RemoteGLM: {', '.join(scores.systems)}")
    columns = column_order(scores)
    rows = metric_rows(scores)
    main = main_rows(rows)
    others = [row for row in rows if row not in main]

    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'>"
        f"<title>{title}</title><style>{STYLE}</style><h1>{title}</h1>"
    ]
    parts += [f"<p class='warning'>{escape(text)}</p>" for text in scores.warnings]
    parts += ["<h2>Metrics</h2>", html_table(columns, main)]
    parts += ["<details><summary>all other metrics</summary>", html_table(columns, others)]
    parts.append("</details>")
    parts += [f"<p>{escape(text)}</p>" for text in notes]

    parts.append("<div class='classes'>")
    for of_class in scores.classes:
        parts.append(f"<div><h2>{escape(of_class.title)}</h2>{bars(of_class)}</div>")
    parts.append("</div><h2>Answers, the worst first</h2>")

    parts.append("<p>Marked: objects that no reference names.</p><div class='gallery'>")
    for index in worst_first(scores, scores.systems[-1])[: gallery or None]:
        parts.append(card(scores, index))
    parts.append("</div></html>")
    return "\n".join(parts)


def html_table(columns: list[str], rows: list[Row]) -> str:
    """columns: their names, in order; rows: see metric_rows."""
    heads = "".join(f"<th>{escape(name)}</th>" for name in columns)
    lines = [f"<div class='scroll'><table><tr><th>metric</th>{heads}</tr>"]
    for name, cells in rows:
        line = f"<td>{escape(name)}</td>"
        for column in columns:
            value, interval = cells.get(column, ("-", ""))
            line += f"<td>{value}<small>{interval}</small></td>"
        lines.append(f"<tr>{line}</tr>")
    return "\n".join(lines) + "</table></div>"


def bars(of_class: ClassShares) -> str:
    """HTML table with a bar for each scene."""
    kind = "bar" if of_class.higher_is_better else "bar bad"
    lines = []
    for scene, share, images in of_class.shares:
        bar = f"<span class='{kind}'><i style='width:{share:.1f}%'></i></span>"
        cells = (escape(scene), images, f"{number(share)} %", bar)
        lines.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return f"<div class='scroll'><table>{''.join(lines)}</table></div>"


def card(scores: Scores, index: int) -> str:
    """An image with what each system answers and what the references say."""
    dataset = scores.dataset
    assert dataset.read_image is not None
    name = escape(Path(dataset.images[index]).name)
    source = thumbnail(dataset.read_image(dataset.images[index]))
    lines = [f"<div class='card'><img alt='{name}' src='{source}'><div><p><b>{name}</b></p>"]
    for system in scores.systems:
        text = scores.columns[system].answers[index]
        html = marked(text, dataset.truths[index]) or "(empty)"
        lines.append(f"<p><b>{escape(system)}</b> {html}</p>")
    references = "<br>".join(map(escape, dataset.references[index]))
    lines.append(f"<p><b>references</b> {references}</p></div></div>")
    return "\n".join(lines)


def thumbnail(image) -> str:
    """PIL RGB image -> data URI of a small JPEG."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return data_uri(small, "JPEG", quality=85)


def marked(text: str, image_truth: Truth) -> str:
    """HTML of an answer, its hallucinated objects marked."""
    html = ""
    last = 0
    for found in sorted(hallucinated(text, image_truth), key=lambda found: found.start):
        html += escape(text[last : found.start])
        word = escape(text[found.start : found.end])
        html += f'<mark title="{escape(found.name)}">{word}</mark>'
        last = found.end
    return html + escape(text[last:])
