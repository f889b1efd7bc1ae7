"""The evaluation protocols by name: `"module:attribute"` of an `esp.evaluation.Protocol`."""

PROTOCOLS: dict[str, str] = {
    "dsa": "esp.evaluation:DSA",
    "idc": "esp.evaluation:IDC",
}
