"""Helpers of the actions."""


def half(number):
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number // 2
