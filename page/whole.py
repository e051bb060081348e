"""The page in one piece: markup, style and scripts from page/web, put together as they are.

Nothing is translated or built: the scripts follow each other in one <script>, in the order below.
"""

import base64
import hashlib
import re
from pathlib import Path

from support.files import read_text

WEB = Path(__file__).with_name("web")
SCRIPTS = "common", "read", "editor", "write", "watch", "study", "start"


def whole_page():
    """The page that the server serves, as HTML."""
    html = read_text(WEB / "page.html")
    script = "\n".join(read_text(WEB / f"{name}.js") for name in SCRIPTS)
    for tag, text in (("style", read_text(WEB / "page.css")), ("script", script)):
        html = html.replace(f"<{tag}></{tag}>", f"<{tag}>\n{text}</{tag}>")
    return html


def with_policy(html):
    """(the page, its Content-Security-Policy): only the script and the style in the page run."""
    hashes = {tag: " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'"
        for part in re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL))
        for tag in ("script", "style")}
    return html.encode(), ("default-src 'none'; connect-src 'self'; img-src data:; "
                           "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
                           f"script-src {hashes['script']}; style-src {hashes['style']}")
