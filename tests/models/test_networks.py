"Every registered network keeps the contract; what a network lacks is said in one sentence."
import pytest
import torch
from torch import nn

from kdnb.checks import check_model, check_network
from kdnb.contract import Network, Out
from kdnb.data.images import load_images
from kdnb.models.pretrained import network
from kdnb.registry import models


@pytest.mark.parametrize("name", models.names())
def test_model_keeps_the_contract(name): check_model(name, **({"image_size": 32} if "image_size" in models.options(name) else {}))


class Whole(Network):
    def __init__(self, classes=10, channels=3):
        super().__init__()
        self.width, self.classifier = channels, nn.Linear(channels, classes)

    def forward(self, x):
        embedding = x.mean((2, 3))
        return Out(self.classifier(embedding), embedding, (x,), (x,))


def test_every_network_is_a_network():
    for name in models.names():
        with torch.device("meta"): net = models.build(name)
        assert isinstance(net, Network) and isinstance(net.width, int) and net.classifier.weight.shape[1] == net.width
    images = load_images("digits")
    check_network(network("resnet8@size=16", images), torch.randn(4, 1, 8, 8), 10)


@pytest.mark.parametrize("fault,said", [
    (lambda net: delattr(net, "width"), "no `width`"), (lambda net: delattr(net, "classifier"), "no `classifier`"),
    (lambda net: setattr(net.classifier, "bias", None), "without bias"), (lambda net: setattr(net, "width", 5), r"should be \(4, 5\)"),
    (lambda net: net.register_forward_hook(lambda net, x, out: out._replace(maps=())), "no `maps`"),
    (lambda net: net.register_forward_hook(lambda net, x, out: out._replace(before=())), "`before`"),
    (lambda net: net.register_forward_hook(lambda net, x, out: out._replace(logits=2 * out.logits)), "not those of the embedding")])
def test_what_a_network_lacks_is_said_in_one_sentence(fault, said):
    check_network(Whole(), torch.randn(4, 3, 8, 8), 10)
    net = Whole()
    fault(net)
    with pytest.raises(AssertionError, match=said) as caught: check_network(net, torch.randn(4, 3, 8, 8), 10)
    assert "\n" not in str(caught.value)
    with pytest.raises(AssertionError, match="not a kdnb.contract.Network"): check_network(nn.Linear(2, 2), torch.randn(4, 2), 2)
