"""The methods by name: `"module:Class"`. One of your own is `package.module:Class` on the command line."""

METHODS: dict[str, str] = {
    "cafe": "esp.methods.cafe:CAFE",
    "dc": "esp.methods.dc:DC",
    "dm": "esp.methods.dm:DM",
    "dsa": "esp.methods.dc:DSA",
    "esp": "esp.methods.esp:ESP",
    "herding": "esp.methods.herding:Herding",
    "idc": "esp.methods.idc:IDC",
    "kcenter": "esp.methods.herding:KCenter",
    "kfs": "esp.methods.kfs:KFS",
    "kip": "esp.methods.kip:KIP",
    "mtt": "esp.methods.mtt:MTT",
    "random": "esp.methods.random:Random",
}
