"""PPFCOS: the FCOS object detector on PaddlePaddle, trained in PaddleDetection's style.

Importing this package changes nothing in the process and imports neither Paddle nor PaddleDetection.
`import ppfcos.modeling` registers the architecture in PaddleDetection's workspace. For full speed on a CPU,
configure the process before Paddle is imported, as every command does:

    from ppfcos import environment

    environment.configure_process()

    import ppfcos.modeling
    from ppdet.core.workspace import create, load_config

    load_config("configs/fcos_r50_fpn_1x_coco.yml")
    model = create("PPFCOS")
"""

__version__ = "0.2.0"
