"""GitLab's annotations report: links from the job's page to the studies.

Source:
    https://docs.gitlab.com/ci/yaml/artifacts_reports/#artifactsreportsannotations
"""

from __future__ import annotations

import json

from service.ci.formats.texts import visible
from service.ci.report import Report

#: What begins an address that a browser opens.
_WEB = ("http://", "https://")


def render(report: Report) -> str:
    """A report as links.

    Args:
        report: what the check found.

    Returns:
        A JSON object with a link per study that has a web page.
    """
    found = [(each.study_url, each.study_id, each.workload) for each in report.judgements]
    if report.study is not None:
        found.append((report.study.url, report.study.study_id, report.study.workload))
    urls = {url: (study_id, workload) for url, study_id, workload in found if url.startswith(_WEB)}
    links = [
        {
            "external_link": {
                "label": f"Study {visible(study_id[:8])}: {visible(workload)}",
                "url": visible(url),
            }
        }
        for url, (study_id, workload) in urls.items()
    ]
    return json.dumps({"cliptune": links}, indent=2) + "\n"
