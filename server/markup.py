"""HTML that cannot be broken by what it shows: text is escaped unless it is markup already."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


class Html(str):
    """Text that is finished markup."""

    __slots__ = ()


def element(name: str, *content: str | Html, **attributes: str) -> Html:
    """Return an element; content that is not `Html` is escaped, and so are all attributes.

    Args:
        name: Tag name.
        content: What is inside, in order.
        attributes: A trailing underscore is dropped and others become hyphens (`class_`,
            `aria_label`).
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value
    )
    return Html(f"<{name}{given}>{join(content)}</{name}>")


def join(parts: Iterable[str | Html]) -> Html:
    """Return parts one after the other, escaping those that are not markup."""
    return Html("".join(part if isinstance(part, Html) else escape(part) for part in parts))


def table(
    caption: str, titles: Sequence[str], rows: Iterable[Sequence[str | Html]], numeric: set[int]
) -> Html:
    """Return a table that scrolls sideways on narrow screens; each row's first cell heads it.

    Args:
        caption: What the table shows.
        titles: Heads of the columns.
        rows: Cells, as many as titles.
        numeric: Columns to align right.
    """
    kind = ["num" if column in numeric else "" for column in range(len(titles))]
    heads = [element("th", t, scope="col", class_=k) for t, k in zip(titles, kind, strict=True)]
    body = [
        element(
            "tr",
            element("th", row[0], scope="row", class_=kind[0]),
            *(element("td", c, class_=k) for c, k in zip(row[1:], kind[1:], strict=True)),
        )
        for row in rows
    ]
    whole = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *heads)),
        element("tbody", *body),
    )
    return element("div", whole, class_="wide", role="region", tabindex="0", aria_label=caption)
