"""The networks by name. A spec is `NAME[,option=value...]`: `convnet3`, `convnet3,width=64`, `convnet3,norm=none`.

An entry is `"module:factory"`, `factory(shape, classes, **options) -> nn.Module`, where the module maps images
[n, c, h, w] to `(features [n, d], logits [n, classes])`. A network of one's own is `package.module:factory`.
"""

NETWORKS: dict[str, str] = {
    "convnet3": "esp.networks.convnet:convnet3",
    "convnet4": "esp.networks.convnet:convnet4",
    "convnet": "esp.networks.convnet:convnet",
    "densenet121": "esp.networks.densenet:densenet121",
    "densenetidc": "esp.networks.densenet:densenetidc",
    "efficientnetv2s": "esp.networks.efficientnet:efficientnetv2s",
    "kipnet": "esp.networks.kipnet:kipnet",
    "resnet10": "esp.networks.resnet:resnet10",
    "resnet10idc": "esp.networks.resnet:resnet10idc",
    "resnet18": "esp.networks.resnet:resnet18",
}
