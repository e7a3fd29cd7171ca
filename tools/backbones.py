#!/usr/bin/env python
"""List every plain ViT that timm and open_clip register: size, positions, licence, and which tubes fit. No weights."""

from scaleup import cli


def arguments():
    made = cli.parser(__doc__, 'tools/backbones.py "*dinov3*"\n  tools/backbones.py --markdown > docs/backbones.md')
    made.add_argument("pattern", nargs="?", default="*", help="a glob, such as 'timm:*huge*' (default: all)")
    made.add_argument("--markdown", action="store_true", help="print the page docs/backbones.md")
    return made


def run(args):
    from scaleup.backbones import table

    names = table.names(args.pattern)
    with cli.progress("building", len(names)) as advance:
        found = table.table(names, advance)
    return table.as_json(found) if args.json else found


def show(found):
    from scaleup.backbones import page

    print(page.markdown(found) if args.markdown else page.text(found), end="")


if __name__ == "__main__":
    args = arguments().parse_args()
    cli.main(run, args, show)
