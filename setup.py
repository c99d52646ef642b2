from setuptools import find_packages, setup

setup(
    packages=find_packages(include=['trickbag', 'trickbag.*']),
    package_data={'trickbag': ['py.typed', 'notebooks/*.ipynb']},
    install_requires=[
        'fastcore>=2.2.22',
        'fastprogress>=1.0.3,<1.1',  # 1.1 brings 26 packages for the one bar that is used here
        'torch>=2.6',
        'torchvision',
        'pillow',
        'matplotlib',
        'safetensors',
        'tomli_w',
    ],
    extras_require={
        'dev': [
            'nbdev==3.3.26',
            'fastcore==2.2.39',
            'execnb==0.3.4',  # pinned: they write trickbag/
            'smalldocs==0.5.4',
            'latex2mathml==3.81.1',
            'markdown-it-py==4.3.0',
            'mdit-py-plugins==0.7.0',
            'pygments==2.21.0',  # docs/
            'nbclient',
            'ipykernel',
            'pandas',
            'pytest',
            'pytest-xdist',
            'ruff==0.17.6',  # notebooks and tests
            'basedpyright==1.40.2',  # types of the package; pyright that needs no npm
            'timm',
            'torchmetrics',
            'scikit-learn',
            'pycocotools',  # references that the tests compare with
            'onnx',
            'onnxruntime',
            'onnxscript',
            'torchcodec',
            'optuna',
            'schedulefree',  # the tests compare with its optimizers
            'datasets',
            'webdataset',
            'albumentations',  # data as people have them
            'tensorboard',
            'wandb',
            'mlflow-skinny',
            'sqlalchemy',
            'alembic',  # logs, and MLflow's database
        ],
        'hf': ['datasets'],
        'tensorboard': ['tensorboard'],
        'wandb': ['wandb'],
        'mlflow': ['mlflow-skinny', 'sqlalchemy', 'alembic'],
        'timm': ['timm'],
        'onnx': ['onnx', 'onnxruntime', 'onnxscript'],
        'hub': ['huggingface_hub'],
        'tune': ['optuna'],  # proposes settings
        'ray': ['ray[train]'],  # starts workers on many machines
        'detect': ['torchmetrics', 'pycocotools'],
        'torchcodec': ['torchcodec'],  # decodes JPEGs once torchvision has lost its decoders
        'bench': ['fastai', 'timm', 'lightning'],
    },
    entry_points={
        'console_scripts': ['trickbag=trickbag.cli:main'],
        'nbdev': ['trickbag=trickbag._modidx:d'],
    },
)
