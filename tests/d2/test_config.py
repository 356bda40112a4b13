import pytest
from fvcore.common.config import CfgNode as FvcoreCfgNode

from bevkd2.d2 import CfgNode, configurable


class Head:
    @configurable
    def __init__(self, *, classes, width=8):
        self.classes, self.width = classes, width

    @classmethod
    def from_config(cls, cfg):
        return {"classes": cfg.CLASSES}


class WideHead(Head):
    @classmethod
    def from_config(cls, cfg, **kwargs):
        return {**super().from_config(cfg), "width": 2 * kwargs["half"]}


@pytest.fixture(params=[CfgNode, FvcoreCfgNode])
def cfg(request):
    return request.param({"CLASSES": 10})


def test_explicit_arguments(cfg):
    head = Head(classes=3, width=4)
    assert (head.classes, head.width) == (3, 4)


def test_config_gives_the_arguments(cfg):
    for head in (Head(cfg), Head(cfg=cfg)):
        assert (head.classes, head.width) == (10, 8)


def test_keywords_beside_the_config_override(cfg):
    head = Head(cfg, classes=2, width=1)
    assert (head.classes, head.width) == (2, 1)


def test_subclass_from_config_is_used_and_may_take_keywords(cfg):
    head = WideHead(cfg, half=3)
    assert (head.classes, head.width) == (10, 6)


def test_from_config_that_names_a_keyword_gets_it(cfg):
    class Sized(Head):
        @classmethod
        def from_config(cls, cfg, size):
            return {"classes": size}

    assert Sized(cfg, size=5, width=7).__dict__ == {"classes": 5, "width": 7}
    assert Sized(cfg, 5).classes == 5


def test_function(cfg):
    @configurable(from_config=lambda cfg: {"classes": cfg.CLASSES})
    def build(classes, width=1):
        return classes, width

    assert build(cfg) == (10, 1)
    assert build(cfg, width=3) == (10, 3)
    assert build(4) == (4, 1)


def test_decorator_with_empty_parentheses(cfg):
    class Plain:
        @configurable()
        def __init__(self, a):
            self.a = a

        @classmethod
        def from_config(cls, cfg):
            return {"a": cfg.CLASSES}

    assert Plain(cfg).a == 10


def test_missing_from_config_is_an_error():
    class Forgot:
        @configurable
        def __init__(self, a):
            pass

    with pytest.raises(AttributeError, match="from_config"):
        Forgot(1)


def test_from_config_must_be_a_classmethod():
    class NotClassmethod:
        @configurable
        def __init__(self, a):
            pass

        def from_config(self, cfg):
            return {}

    with pytest.raises(TypeError, match="classmethod"):
        NotClassmethod(1)


def test_first_argument_must_be_called_cfg(cfg):
    class Wrong:
        @configurable
        def __init__(self, a):
            pass

        @classmethod
        def from_config(cls, config):
            return {}

    with pytest.raises(TypeError, match="must take 'cfg' as the first argument"):
        Wrong(cfg)


def test_decorator_without_arguments_is_for_init_only():
    with pytest.raises(AssertionError, match="@configurable"):
        configurable(lambda a: a)


def test_file_inherits_from_its_base(tmp_path):
    (tmp_path / "base.yaml").write_text("VERSION: 2\nA: {X: 1, Y: 2}\n")
    (tmp_path / "top.yaml").write_text("_BASE_: base.yaml\nA: {Y: 3}\n")
    cfg = CfgNode({"VERSION": 2, "A": {"X": 0, "Y": 0}})
    cfg.merge_from_file(str(tmp_path / "top.yaml"))
    assert (cfg.A.X, cfg.A.Y) == (1, 3)


def test_unknown_key_is_an_error(tmp_path):
    (tmp_path / "c.yaml").write_text("VERSION: 2\nWETGHTS: x\n")
    with pytest.raises(KeyError, match="WETGHTS"):
        CfgNode({"VERSION": 2, "WEIGHTS": ""}).merge_from_file(str(tmp_path / "c.yaml"))
