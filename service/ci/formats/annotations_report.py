"""GitLab's annotations report: links from the job's page to the studies.

Source:
    https://docs.gitlab.com/ci/yaml/artifacts_reports/#artifactsreportsannotations
"""

from __future__ import annotations

import json

from service.ci.formats.texts import visible
from service.ci.report import Report


def render(report: Report) -> str:
    """A report as links.

    Args:
        report: what the check found.

    Returns:
        A JSON object with a link per study that has a web page.
    """
    urls = {
        each.study_url: each
        for each in report.judgements
        if each.study_url.startswith(("http://", "https://"))
    }
    links = [
        {
            "external_link": {
                "label": f"Study {visible(each.study_id[:8])}: {visible(each.workload)}",
                "url": visible(url),
            }
        }
        for url, each in urls.items()
    ]
    return json.dumps({"cliptune": links}, indent=2) + "\n"
