"""From YAML files and overrides to checked configs, and from configs to objects.

In the order in which a run uses them:
    `compose` merges the YAML files and the overrides; `renamed` replaces names of earlier releases,
    `adopt` the sizes of the model by those of the folder that training starts from.
    `preflight` refuses invalid configs and lists every problem in one error. It calls `checks`,
    which binds each section to a constructor's signature (`dpn.common.schema`, `sections`), and
    then checks that the sections fit together. `auto_loss`, `engine` and `apply` answer
    questions for it.
    `build` creates the objects of a checked config.

Configs are checked and built from every part of the package, so this folder imports all of them.

May import every folder below it.
"""
