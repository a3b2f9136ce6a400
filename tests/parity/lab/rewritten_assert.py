"""An action whose assertion fails."""

from synapse_runtime.action import BaseAction


class Check(BaseAction):
    """Compares two lists that differ."""

    def execute(self):
        numbers = [1, 2]
        assert numbers == [1, 3]


class Compare(BaseAction):
    """Compares two values."""

    def execute(self):
        left, right = self.params["left"], self.params["right"]
        assert left == right
