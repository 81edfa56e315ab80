"""The page: models to look at in a browser, `fullfield app RUN|FILE|NAME...`, or mounted in a server of one's own.

It is made with gradio (the extra `app`) and works without a network. `page.py` puts it together from one file a tab,
`shelf.py` holds the models, and what is written into the page is rendered by `pieces.html.jinja`.
"""
