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

PAPERS: dict[str, str] = {
    "cafe": "Wang et al., CVPR 2022",
    "dc": "Zhao, Mopuri and Bilen, ICLR 2021",
    "dm": "Zhao and Bilen, WACV 2023",
    "dsa": "Zhao and Bilen, ICML 2021",
    "esp": "Ma et al., Sensors 2023",
    "herding": "Welling, ICML 2009",
    "idc": "Kim et al., ICML 2022",
    "kcenter": "Sener and Savarese, ICLR 2018",
    "kfs": "Lee, Lee and Hwang, arXiv 2022",
    "kip": "Nguyen et al., ICLR 2021",
    "mtt": "Cazenavette et al., CVPR 2022",
    "random": "-",
}
"""Where each method was published."""
