"""Videos whose frames say which frame they are, by their brightness."""

import io

import av
import numpy as np

STEP = 12  # gray levels between one frame and the next


def numbered(frames, fps=10, height=32, width=32, container="mp4", codec="libx264", stamps=None, options=None, first=0):
    """``frames`` flat frames; frame i is of gray 10 + STEP * (``first`` + i), at i / fps (or at ``stamps`` / fps)."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream(codec, rate=fps, options=options or {"crf": "4"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for i in range(frames):
            gray = np.full((height, width, 3), 10 + STEP * (i + first), np.uint8)
            frame = av.VideoFrame.from_ndarray(gray, format="rgb24")
            frame.pts = stamps[i] if stamps else i
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return buffer.getvalue()


def numbers(clip):
    """Which frames these are: (3, T, H, W) -> list of T numbers."""
    return ((clip.double().mean((0, 2, 3)) - 10) / STEP).round().int().tolist()


def moving(frames=40, codec="libx264", container="mp4", height=48, width=64, pix_fmt="yuv420p", options=None, fps=10):
    """A picture that slides, with cuts, so that frames refer to one another in every way that the codec knows."""
    rng, buffer = np.random.default_rng(0), io.BytesIO()
    ground = rng.integers(0, 255, (height + 60, width + 60, 3), dtype=np.uint8)
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream(codec, rate=fps, options=options or {})
        stream.height, stream.width, stream.pix_fmt = height, width, pix_fmt
        for i in range(frames):
            picture = ground[i % 60 :][:height, 2 * (i % 30) :][:, :width] if i % 17 else ground[-height:, -width:]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return buffer.getvalue()
