from scaleup.common.timing import late_mean


def test_the_first_steps_do_not_count_as_the_cost_of_a_step() -> None:
    assert late_mean([9.0] * 5 + [1.0, 2.0, 3.0, 1.0, 3.0]) == 2.0
    assert late_mean([9.0, 1.0]) == 1.0
    assert late_mean([4.0]) == 4.0
