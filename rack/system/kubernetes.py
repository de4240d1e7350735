"""Variables that Kubernetes sets for services, which look like ours where one is named after us.

For a service `lpu-rack` every container of its namespace gets LPU_RACK_SERVICE_HOST,
LPU_RACK_SERVICE_PORT, LPU_RACK_SERVICE_PORT_<PORT'S NAME>, LPU_RACK_PORT, LPU_RACK_PORT_8000_TCP
and ..._TCP_PROTO, ..._PORT, ..._ADDR; for `lpu-rack-model` the same behind LPU_RACK_MODEL. They
say nothing to us. Name and value must both have that form: anything else may be a mistyped key.
Source: Kubernetes, "Service", discovering services by environment variables.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_NUMBER, _PROTOCOL = r"\d+", "(tcp|udp|sctp)"
_HOST = r"(\d+(\.\d+){3}|[0-9a-f]*:[0-9a-f:.]*)"
_URL = rf"{_PROTOCOL}://(\d+(\.\d+){{3}}|\[[0-9a-f:.]+\]):\d+"
_PORT = r"PORT_\d+_(TCP|UDP|SCTP)"
_FORMS = (  # (what stands behind the service's name, its value)
    ("SERVICE_HOST", _HOST),
    (r"SERVICE_PORT(_[A-Z0-9_]+)?", _NUMBER),
    ("PORT", _URL),
    (_PORT, _URL),
    (f"{_PORT}_PROTO", _PROTOCOL),
    (f"{_PORT}_PORT", _NUMBER),
    (f"{_PORT}_ADDR", _HOST),
)


def service_variables(environ: Mapping[str, str], prefix: str) -> list[str]:
    """Return those variables that Kubernetes set for services whose name begins with `prefix`."""
    return [
        name
        for name, value in environ.items()
        if name.startswith(prefix)
        and any(
            re.fullmatch(f"([A-Z0-9_]+_)?{form}", name.removeprefix(prefix))
            and re.fullmatch(wanted, value)
            for form, wanted in _FORMS
        )
    ]
