"""What makes plain Markdown, as GitHub shows it, a site: its navigation, and links to files that are no pages.

Navigation pages (`NAVIGATION`) list pages as links. Sphinx wants a `toctree` for that, which GitHub would print as
code, so it is made from these lists while the page is read: one for each heading, named like it. A link to a folder
stands for the folder's pages.
"""

import re
from pathlib import Path, PurePosixPath
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

#: Pages whose lists of links are the site's navigation.
NAVIGATION = ("docs/index", "docs/reference/index", "docs/decisions")
_ENTRY = re.compile(r"^- \[[^\]]+\]\(([^)#\s]+)\)", re.MULTILINE)
_HEADING = re.compile(r"^## +(.+)$", re.MULTILINE)


def make_toctrees(text: str, captions: bool = True) -> str:
    """Return the page with a `toctree` at the end of each section that lists pages.

    Args:
        text: A navigation page.
        captions: Whether a toctree is named by its heading.
    """
    parts = _HEADING.split(text)
    sections = [(None, parts[0]), *zip(parts[1::2], parts[2::2], strict=True)]
    made = []
    for heading, body in sections:
        targets = _ENTRY.findall(body)
        pages = [target for target in targets if target.endswith(".md")]
        folders = [target for target in targets if not PurePosixPath(target).suffix]
        if heading is not None:
            made.append(f"## {heading}")
        made.append(body.rstrip("\n") + "\n\n")
        caption = [f":caption: {heading}"] if heading and captions else []
        if pages:
            made.append("\n".join(["```{toctree}", ":hidden:", *caption, "", *pages, "```", "", ""]))
        if folders:
            entries = [f"{folder.rstrip('/')}/*" for folder in folders]
            made.append("\n".join(["```{toctree}", ":glob:", ":maxdepth: 1", "", *entries, "```", "", ""]))
    return "".join(made)


def _add_navigation(app: Sphinx, page: str, source: list[str]) -> None:
    if page in NAVIGATION:
        source[0] = make_toctrees(source[0], captions=page == app.config.root_doc)


def _link_files(app: Sphinx, doctree: nodes.document) -> None:
    """Lead links to files and folders of the repository to where it is published, or to a copy in the site."""
    page = app.env.docname
    for link in [*doctree.findall(addnodes.pending_xref), *doctree.findall(addnodes.download_reference)]:
        if link.get("reftype") != "myst":
            continue
        if link.get("refdomain") == "doc":
            if link["reftarget"] in app.env.found_docs:
                continue
            target = app.env.doc2path(link["reftarget"])
        else:
            target = Path(app.env.relfn2path(link["reftarget"].split("#")[0], page)[1])
        if not target.exists():
            continue
        text = link.children
        if app.config.repository_url:
            address = f"{app.config.repository_url.rstrip('/')}/{target.relative_to(app.srcdir).as_posix()}"
            link.replace_self(nodes.reference("", "", *text, refuri=address, internal=False))
        elif target.is_dir():
            link.replace_self(list(text))
        elif link.get("refdomain") == "doc":
            link.replace_self(
                addnodes.download_reference("", "", *text, reftarget=f"/{target.relative_to(app.srcdir)}")
            )


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the handlers with Sphinx."""
    app.add_config_value("repository_url", "", "env", types=frozenset({str}))
    app.connect("source-read", _add_navigation)
    # Before Sphinx collects the files that the site has to hold.
    app.connect("doctree-read", _link_files, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
