"""Post the report of the quality gates as one comment of its pull request, updated in place.

It runs with a token that may write, so that it trusts nothing that the pull request's code made: whose pull request it
is and how the gates ended come from GitHub, the report is one bounded text that cannot mention people. Only Python's
own library is used: nothing is installed beside the token.
"""

import html
import json
import os
import re
import sys
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

MARK = "<!-- ml-platform quality gates -->"
BOT = "github-actions[bot]"
# GitHub takes 65,536 characters; what is cut is in the run's summary.
MOST = 60_000
PAGE = 100
PAGES = 30
TIMEOUT = 30


def main() -> None:
    """Find the pull request of a commit, and write its comment."""
    number = pull_request(os.environ["HEAD_OWNER"], os.environ["HEAD_BRANCH"], os.environ["HEAD_SHA"])
    if number is None:
        sys.stdout.write("The commit is no longer the head of an open pull request: nothing is posted.\n")
        return
    body = {"body": comment(Path(sys.argv[1]))}
    known = own_comment(number)
    if known is None:
        ask("POST", f"issues/{number}/comments", body)
    else:
        ask("PATCH", f"issues/comments/{known}", body)
    sys.stdout.write(f"The comment of pull request {number} is {'written' if known is None else 'updated'}.\n")


def pull_request(owner: str, branch: str, sha: str) -> int | None:
    """Return the open pull request of a branch whose head is the commit that was judged; ``None`` if there is none."""
    query = urllib.parse.urlencode({"state": "open", "head": f"{owner}:{branch}", "per_page": PAGE})
    found = [pull["number"] for pull in ask("GET", f"pulls?{query}") if pull["head"]["sha"] == sha]
    return found[0] if found else None


def own_comment(number: int) -> int | None:
    """Return the id of this job's earlier comment, None without one. Other users' comments do not count."""
    for page in range(1, PAGES + 1):
        comments = ask("GET", f"issues/{number}/comments?per_page={PAGE}&page={page}")
        for written in comments:
            # The comment of a deleted account has no user.
            login = (written["user"] or {}).get("login")
            if login == BOT and (written["body"] or "").startswith(MARK):
                return int(written["id"])
        if len(comments) < PAGE:
            return None
    return None


def comment(report: Path) -> str:
    """Return the comment: GitHub's word first, then the report as the pull request's own code wrote it."""
    conclusion, url, sha = (os.environ[name] for name in ("CONCLUSION", "RUN_URL", "HEAD_SHA"))
    head = f"{MARK}\n**Quality gates: {conclusion}** for {sha[:12]} ([run]({url}))\n\n"
    return head + (read_report_text(report) or "No report was made: look at the run.")


def read_report_text(report: Path) -> str:
    """Return the report's text; empty where there is none."""
    # A link could lead to a file of the runner.
    if report.is_symlink() or not report.is_file():
        return ""
    with report.open("rb") as file:
        text = file.read(4 * MOST).decode(errors="replace")
    # Nothing inside can pass for another report's mark. A comment that is not closed goes on to the end, as it would on
    # the page.
    text = re.sub(r"<!--.*?(-->|\Z)", "", text, flags=re.DOTALL).replace("<!--", "&lt;!--").lstrip()
    text = neutralise_mentions(text)
    return text if len(text) <= MOST else text[:MOST] + "\n\n… cut: the rest is in the run's summary."


def neutralise_mentions(text: str) -> str:
    """Return a text without mentions: GitHub notifies each name after an @ in the rendered comment."""
    text = re.sub(
        r"&(#[0-9]+|#[xX][0-9a-fA-F]+|commat);?",
        lambda found: "@" if html.unescape(found[0]) == "@" else found[0],
        text,
    )
    return text.replace("@", "@\u200b")


def ask(method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """Ask GitHub's API of this repository."""
    address = f"{os.environ['GITHUB_API_URL']}/repos/{os.environ['GITHUB_REPOSITORY']}/{path}"
    request = urllib.request.Request(address, method=method, data=json.dumps(body).encode() if body else None)  # noqa: S310
    # A header that urllib does not hand on to another address.
    request.add_unredirected_header("Authorization", f"Bearer {os.environ['GH_TOKEN']}")
    request.add_header("Accept", "application/vnd.github+json")
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310
        return json.load(answer)


if __name__ == "__main__":
    main()
