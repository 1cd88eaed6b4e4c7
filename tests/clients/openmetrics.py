"""Collects metrics as Prometheus would and prints them as JSON: the type of each family, and each sample.

Argument: the URL. The parser is the strict one of OpenMetrics; what it does not like ends this with an exception.
"""

import json
import sys
import urllib.request

from prometheus_client.openmetrics.parser import text_string_to_metric_families

request = urllib.request.Request(sys.argv[1], headers={"Accept": "application/openmetrics-text"})
with urllib.request.urlopen(request, timeout=15) as answer:
    kind = answer.headers["Content-Type"]
    text = answer.read().decode()
assert kind.startswith("application/openmetrics-text; version=1.0.0"), kind

families = list(text_string_to_metric_families(text))
print(
    json.dumps(
        {
            "types": {family.name: family.type for family in families},
            "help": {family.name: family.documentation for family in families},
            "samples": [
                [sample.name, sample.labels, sample.value] for family in families for sample in family.samples
            ],
        }
    )
)
