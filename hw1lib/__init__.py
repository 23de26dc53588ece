"""The library behind the HW1 workbook. A notebook begins with `from hw1lib.workbook import Workbook, browse`.

Public modules, from the top down; a module imports only from its own line and those below it:

    cli                 the commands of `python -m hw1lib`
    report  cluster     run the notebooks and render the report; run steps on Dask workers
    predict  evaluate   predictions for new images; scores of predictions
    workbook            Workbook: a profile on its data, results of steps, `keep`; browse: pictures with sliders
    steps  chapters     the step graph and results on disk; figures, tables and sentences, one file for each notebook
    loops               the training loop, and one file for each experiment
    models              resnet, byol, segmenters, sam, superpixels, and pretrained weights
    metrics  data       scores as functions of arrays; the course layout, decoded images, land-cover classes
    profiles  settings  profiles as read from TOML files; every setting with its type, range and default
    variants            settings A–E and the controls
    files  paths        atomic writes; locations of files and folders
    errors              UserError: what is wrong, and what to do
"""
