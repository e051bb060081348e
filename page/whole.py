"""The page in one piece: markup, style and scripts from page/web, put together as they are.

Nothing is translated or built. The server's page asks the server; `static_page` also holds the
models, and a script (page/web/model.js) that computes with them what the server would answer.
"""

import base64
import hashlib
import json
import math
import re
from pathlib import Path

from page.api import Api
from support.files import read_bytes, read_json, read_text

WEB = Path(__file__).with_name("web")
SCRIPTS = "common", "read", "editor", "write", "watch", "study", "start"


def whole_page(more=""):
    """The page as HTML; more: elements that stand before its script."""
    script = "\n".join(read_text(WEB / f"{name}.js") for name in SCRIPTS)
    return read_text(WEB / "page.html").replace(
        "<style></style>", f"<style>\n{read_text(WEB / 'page.css')}</style>").replace(
        "<script></script>", f"{more}<script>\n{script}</script>")


def with_policy(html):
    """(the page, its Content-Security-Policy): only the script and the style in the page run."""
    return html.encode(), ("default-src 'none'; connect-src 'self'; img-src data:; "
                           "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
                           + own_parts(html))


def own_parts(html):
    """The part of a policy that lets only the scripts and styles in the page run, by their digests.
    """
    return "; ".join(f"{tag}-src " + " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'"
        for part in re.findall(f"<{tag}(?: id=model)?>(.*?)</{tag}>", html, re.DOTALL))
        for tag in ("script", "style"))


def static_page(offer):
    """The page as one HTML file that needs no server and, by its policy, no network.

    It holds the models' weights as they are on disk (bfloat16), their tokens, and the episodes.
    """
    choices = offer.models.choices
    encoding = offer.models.scorer.encoding
    data = {
        "about": Api(offer).about({}, 0), "episodes": offer.games["rows"], "stop": encoding.stop,
        "tokens": ["" if i == encoding.stop else
                   encoding.decode_single_token_bytes(i).decode("latin-1")
                   for i in range(encoding.n_vocab)],
        "models": {folder.name: {
            "config": read_json(folder / "config.json"),
            "weights": base64.b64encode(read_bytes(folder / "model.safetensors")).decode()}
            for folder in {choice.checkpoint.folder for choice in choices.values()}},
        "choices": {name: {
            "model": choice.checkpoint.folder.name, "max_tokens": choice.max_tokens,
            "needs_eta": choice.needs_eta,
            "healing": None if math.isinf(choice.healing) else choice.healing}
            for name, choice in choices.items()}}
    text = json.dumps(data).replace("<", "\\u003c")  # else a text could end the element
    html = whole_page(f'<script type="application/json" id="data">{text}</script>\n'
                      f"<script id=model>\n{read_text(WEB / 'model.js')}</script>\n")
    policy = ("default-src 'none'; img-src data:; worker-src blob:; base-uri 'none'; "
              f"form-action 'none'; {own_parts(html)}")
    return html.replace('<meta charset="utf-8">', '<meta charset="utf-8">\n<meta http-equiv='
                        f'"Content-Security-Policy" content="{policy}">', 1)
