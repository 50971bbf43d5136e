"""The action's last step: the report as one comment of the pull request, found by its marker and updated.

It never fails a job: a fork's token may not write, and then the summary has the report. Standard library alone.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

#: Comments of a page, and pages that are looked through.
PAGE, MAX_PAGES = 100, 30
TIMEOUT_SECONDS = 30
#: Who may have written the comment that is updated, besides bots: nobody else's text is overwritten.
OWN = ("OWNER", "MEMBER", "COLLABORATOR")


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """The token goes to the address that the runner gave, and to no other."""

    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        """Follow none."""
        del arguments, named


class Api:
    """The part of a code host's interface that comments need."""

    def __init__(self, url: str, repository: str, token: str) -> None:
        self._base = f"{url}/repos/{repository}/issues"
        self._token = token
        self._opener = urllib.request.build_opener(NoRedirect)

    def find(self, number: int, marker: str) -> int | None:
        """The id of the comment that begins with the marker."""
        for page in range(1, MAX_PAGES + 1):
            found = self._call("GET", f"/{number}/comments?per_page={PAGE}&page={page}")
            for each in found:
                # An account that was deleted is null.
                kind = (each.get("user") or {}).get("type")
                is_own = kind == "Bot" or each.get("author_association") in OWN
                if is_own and str(each.get("body") or "").startswith(marker):
                    return int(each["id"])
            if len(found) < PAGE:
                return None
        return None

    def create(self, number: int, body: str) -> None:
        """Write a comment."""
        self._call("POST", f"/{number}/comments", {"body": body})

    def update(self, comment: int, body: str) -> None:
        """Replace a comment's text."""
        self._call("PATCH", f"/comments/{comment}", {"body": body})

    def _call(self, method: str, path: str, document: Any = None) -> Any:
        request = urllib.request.Request(
            self._base + path,
            data=None if document is None else json.dumps(document).encode(),
            method=method,
            headers={
                "Accept": "application/vnd.github+json",
                "Authorization": f"Bearer {self._token}",
                "Content-Type": "application/json",
                "User-Agent": "cliptune",
            },
        )
        with self._opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
            return json.load(answer)


def pull_request(event: Path) -> int | None:
    """The number of the pull request that the job is about."""
    try:
        found = json.loads(event.read_text(encoding="utf-8"))["pull_request"]["number"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return found if isinstance(found, int) else None


def main() -> int:
    """The step; its exit code is 0 whatever happened."""
    number = pull_request(Path(os.environ.get("GITHUB_EVENT_PATH", "")))
    if number is None:
        print("No comment: this job is about no pull request.")
        return 0
    if not os.environ.get("GITHUB_TOKEN"):
        print("No comment: the job has no token. The summary has the report.")
        return 0
    try:
        api = Api(os.environ["GITHUB_API_URL"], os.environ["GITHUB_REPOSITORY"], os.environ["GITHUB_TOKEN"])
        body = Path(os.environ["REPORT_PATH"]).read_text(encoding="utf-8")
        marker = body.partition("\n")[0]
        comment = api.find(number, marker)
        if comment is None:
            api.create(number, body)
        else:
            api.update(comment, body)
    except urllib.error.HTTPError as error:
        hint = " (it needs the permission pull-requests: write)" if error.code in (401, 403, 404) else ""
        print(
            f"::warning title=cliptune::no comment was written: HTTP {error.code}{hint}; the summary has the report"
        )
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).replace("%", "%25").split())
        print(f"::warning title=cliptune::no comment was written: {reason}; the summary has the report")
    else:
        print(
            f"The report is {'a new comment' if comment is None else 'comment ' + str(comment)} of #{number}."
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
