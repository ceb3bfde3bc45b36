# Three roles, each for one kind of work. What they may do is what the code was seen to do, held by a test:
#   trainer    reads what lies in the bucket to train on, owns runs/ (old checkpoints and reports are deleted)
#   generator  reads bundles below runs/, adds to datasets/; cannot delete or, with enforce_create_only, replace anything
#   reader     reads datasets/
# Listing is allowed where a request names one of the prefixes, or none: S3 answers a HEAD of a missing object with 404 only
# to who may list, and that question has no prefix; a role that got 403 instead could not tell a new dataset from a locked one.
locals {
  roles = {
    trainer   = data.aws_iam_policy_document.trainer.json
    generator = data.aws_iam_policy_document.generator.json
    reader    = data.aws_iam_policy_document.reader.json
  }
}

data "aws_iam_policy_document" "trainer" {
  statement {
    sid       = "ListRunsAndData"
    actions   = ["s3:ListBucket"]
    resources = [aws_s3_bucket.this.arn]

    condition {
      test     = "StringLikeIfExists"
      variable = "s3:prefix"
      values   = ["runs/*", "datasets/*", "sources/*"]
    }
  }

  statement {
    sid     = "ReadRunsAndData"
    actions = ["s3:GetObject"]
    resources = [
      "${aws_s3_bucket.this.arn}/runs/*",
      "${aws_s3_bucket.this.arn}/datasets/*",
      "${aws_s3_bucket.this.arn}/sources/*",
    ]
  }

  statement {
    sid       = "KeepRuns"
    actions   = ["s3:PutObject", "s3:DeleteObject"]
    resources = ["${aws_s3_bucket.this.arn}/runs/*"]
  }

  statement {
    sid       = "UseTheKey"
    actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
    resources = [aws_kms_key.bucket.arn]
  }
}

data "aws_iam_policy_document" "generator" {
  statement {
    sid       = "ListBundlesAndDatasets"
    actions   = ["s3:ListBucket"]
    resources = [aws_s3_bucket.this.arn]

    condition {
      test     = "StringLikeIfExists"
      variable = "s3:prefix"
      values   = ["runs/*", "datasets/*"]
    }
  }

  statement {
    sid     = "ReadBundlesAndDatasets"
    actions = ["s3:GetObject"]
    resources = [
      "${aws_s3_bucket.this.arn}/runs/*",
      "${aws_s3_bucket.this.arn}/datasets/*",
    ]
  }

  statement {
    sid       = "AddToDatasets"
    actions   = ["s3:PutObject"]
    resources = ["${aws_s3_bucket.this.arn}/datasets/*"]
  }

  statement {
    sid       = "UseTheKey"
    actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
    resources = [aws_kms_key.bucket.arn]
  }
}

data "aws_iam_policy_document" "reader" {
  statement {
    sid       = "ListDatasets"
    actions   = ["s3:ListBucket"]
    resources = [aws_s3_bucket.this.arn]

    condition {
      test     = "StringLikeIfExists"
      variable = "s3:prefix"
      values   = ["datasets/*"]
    }
  }

  statement {
    sid       = "ReadDatasets"
    actions   = ["s3:GetObject"]
    resources = ["${aws_s3_bucket.this.arn}/datasets/*"]
  }

  statement {
    sid       = "UseTheKey"
    actions   = ["kms:Decrypt"]
    resources = [aws_kms_key.bucket.arn]
  }
}

# Instances of cluster.yaml and pods of EKS may take the roles on; nobody's keys are stored anywhere.
data "aws_iam_policy_document" "trust" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }

  statement {
    actions = ["sts:AssumeRole", "sts:TagSession"]

    principals {
      type        = "Service"
      identifiers = ["pods.eks.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "this" {
  for_each             = local.roles
  name                 = "genworker-${each.key}"
  assume_role_policy   = data.aws_iam_policy_document.trust.json
  max_session_duration = 43200
  tags                 = var.tags
}

resource "aws_iam_role_policy" "this" {
  for_each = local.roles
  name     = "bucket"
  role     = aws_iam_role.this[each.key].id
  policy   = each.value
}

resource "aws_iam_instance_profile" "this" {
  for_each = local.roles
  name     = "genworker-${each.key}"
  role     = aws_iam_role.this[each.key].name
  tags     = var.tags
}

resource "aws_eks_pod_identity_association" "this" {
  for_each        = var.eks_cluster == null ? {} : local.roles
  cluster_name    = var.eks_cluster
  namespace       = var.namespace
  service_account = "genworker-${each.key}"
  role_arn        = aws_iam_role.this[each.key].arn
}
