"""The methods by name: `"module:Class"`. One of your own is `package.module:Class` on the command line."""

METHODS: dict[str, str] = {
    "dm": "esp.methods.dm:DM",
    "esp": "esp.methods.esp:ESP",
    "random": "esp.methods.random:Random",
}
