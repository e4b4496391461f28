"""Cases of drags, and reading where the handles are."""

import torch

from velatura.core.alpha import over
from velatura.demo import drag, measure, sprites


def test_the_posed_object_is_the_scenes_own():
    scenes = sprites.draw(measure.HELD_OUT, range(12))
    for index in range(12):
        rgba, points = sprites.posed(measure.HELD_OUT, index, sprites.pose(measure.HELD_OUT, index)[None])
        assert torch.allclose(rgba[0], scenes.lit_foreground[index], atol=1e-5)
        assert torch.allclose(points[0], scenes.points[index], atol=1e-3)


def test_handles_are_found_where_the_object_is_drawn():
    """To half a pixel, whether it stayed, went all the way, or stopped in between."""
    for case in drag.cases(3):
        scene = sprites.draw(measure.HELD_OUT, [case.index])
        for part in (0.0, 0.6, 1.0):
            pose = torch.lerp(case.pose, case.wanted, part)
            rgba, points = sprites.posed(measure.HELD_OUT, case.index, pose[None])
            picture, _ = over(rgba[:, :3], rgba[:, 3:], scene.background)
            used = [0] if case.change == "move" else [1, 2]
            found = drag.find_handles(case, picture)
            assert float(drag.distance(found.handles, points[0, used] - 0.5).max()) < 0.6
            assert found.residual < 0.01


def test_cases_are_what_they_say():
    cases = drag.cases(6)
    assert [case.change for case in cases] == ["move", "rotate", "stretch"] * 2
    assert [case.index for case in cases] == [case.index for case in drag.cases(6)]
    for case in cases:
        assert float(drag.distance(case.handles, case.targets).min()) > 2
        x, y = case.handles[0].round().long()
        assert float(case.mask[0, 0, y, x]) == 1, "the handle is on what is painted"
