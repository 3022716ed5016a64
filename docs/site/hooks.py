"""For MkDocs: the pages whose text stands outside docs/, and the links of all pages, which are written for a checkout.

A link leads to a file of the repository, relative to the file that has it; here it leads to that file's page.  One
that has no page ends the build.
"""

import json
import posixpath
import re
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
PAGES = {  # file of the repository -> page
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CITATION.cff": "citation.md",
    "LICENSE": "licence.md",
}
FOLDERS = {
    "examples": "examples/index.md",
    "bench/results": "measured/index.md",
    "bench/results/learning": "results.md",
}
LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
PICTURE = re.compile(r'<picture>\n.*srcset="(.*)">\n<img src="(.*)" width="(\d+)" alt="(.*)">\n</picture>')
ONE_EACH = r'![\4](\2#only-light){ width="\3" }![\4](\1#only-dark){ width="\3" }'  # they follow the page's own switch
CODE = re.compile(r"(```.*?```|`[^`\n]+`)", re.DOTALL)


def pages():
    """page -> (file of the repository, text), for all that do not stand in docs/."""
    made = {page: (name, (ROOT / name).read_text(encoding="utf-8")) for name, page in PAGES.items()}
    for page, title in (("licence.md", "Licence"), ("citation.md", "Citation")):
        source, text = made[page]
        made[page] = (source, f"# {title}\n\n```text\n{text}```\n")
    titles = []
    for path in sorted((ROOT / "examples").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        title = text.split('"""')[1].split("\n\n")[0].split(".  ")[0].split(". ")[0].replace("\n", " ").rstrip(".")
        titles.append(f"- [{path.name}]({path.name}): {title}")
        made[f"examples/{path.stem}.md"] = (f"examples/{path.name}", f"# {path.name}\n\n```python\n{text}```\n")
    for path in sorted((ROOT / "examples").glob("*.ipynb")):
        cells = [(x["cell_type"], "".join(x["source"])) for x in json.loads(path.read_text(encoding="utf-8"))["cells"]]
        titles.append(f"- [{path.name}]({path.name}): {cells[0][1].splitlines()[0].lstrip('# ')}")
        text = "\n\n".join(x if kind == "markdown" else f"```python\n{x}\n```" for kind, x in cells)
        made[f"examples/{path.stem}.md"] = (f"examples/{path.name}", text + "\n")
    made["examples/index.md"] = ("examples/", "# Examples\n\nEach runs in a test.\n\n" + "\n".join(titles) + "\n")
    titles = []
    for path in sorted((ROOT / "bench" / "results").glob("*.md")):
        titles.append(f"- [{path.stem}]({path.name})")
        made[f"measured/{path.stem}.md"] = (f"bench/results/{path.name}", path.read_text(encoding="utf-8"))
    text = "# Kept tables\n\nWhat the programs under `bench` measured, with machine and versions, weak rows too.\n\n"
    made["measured/index.md"] = ("bench/results/", text + "\n".join(titles) + "\n")
    return made


MADE = pages()
KEPT = [path for path in (ROOT / "bench" / "results").glob("*.*") if path.suffix in (".csv", ".json", ".png")]
PAGE_OF = {source.rstrip("/"): page for page, (source, _) in MADE.items()} | FOLDERS
PAGE_OF |= {f"bench/results/{path.name}": f"measured/{path.name}" for path in KEPT}


def on_files(files, config):
    for page, (_, text) in MADE.items():
        files.append(File.generated(config, page, content=text))
    for path in KEPT:
        files.append(File.generated(config, f"measured/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, **kwargs):
    own = page.file.src_uri
    source = MADE[own][0] if own in MADE else f"docs/{own}"

    def relinked(match):
        link = match[0]
        if re.match(r"[a-z]+:|#", link):
            return link
        target, hash_, anchor = link.partition("#")
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        to = PAGE_OF.get(wanted) or (wanted.removeprefix("docs/") if wanted.startswith("docs/") else None)
        if to is None:
            raise PluginError(f"{source}: the site has no page for {link}")
        return posixpath.relpath(to, posixpath.dirname(own) or ".") + hash_ + anchor

    parts = CODE.split(PICTURE.sub(ONE_EACH, markdown))  # the odd ones are code
    parts[::2] = [LINK.sub(relinked, part) for part in parts[::2]]
    return "".join(parts)
