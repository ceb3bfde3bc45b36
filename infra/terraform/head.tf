# The head of cluster.yaml: the drivers of training and generation run on it, and its autoscaler starts and ends nodes.
# A node that is not of this cluster cannot be ended, and nodes can be given no other roles than the two of the workers.
data "aws_iam_policy_document" "autoscaler" {
  statement {
    sid = "Look"
    actions = [
      "ec2:DescribeInstances",
      "ec2:DescribeInstanceTypes",
      "ec2:DescribeKeyPairs",
      "ec2:DescribeSecurityGroups",
      "ec2:DescribeSubnets",
      "ec2:DescribeVpcs",
    ]
    resources = ["*"]
  }

  statement {
    sid       = "StartNodes"
    actions   = ["ec2:RunInstances"]
    resources = ["*"]
  }

  statement {
    sid       = "ReadImageName"
    actions   = ["ssm:GetParameters"]
    resources = ["arn:aws:ssm:*::parameter/aws/service/deeplearning/*"]
  }

  statement {
    sid       = "TagNodes"
    actions   = ["ec2:CreateTags"]
    resources = ["arn:aws:ec2:*:*:instance/*", "arn:aws:ec2:*:*:volume/*"]
  }

  statement {
    sid       = "EndNodes"
    actions   = ["ec2:TerminateInstances"]
    resources = ["arn:aws:ec2:*:*:instance/*"]

    condition {
      test     = "StringEquals"
      variable = "aws:ResourceTag/ray-cluster-name"
      values   = ["genworker"]
    }
  }

  statement {
    sid       = "GiveNodesTheirRoles"
    actions   = ["iam:PassRole"]
    resources = [aws_iam_role.this["trainer"].arn, aws_iam_role.this["generator"].arn]
  }
}

resource "aws_iam_role" "head" {
  name               = "genworker-head"
  assume_role_policy = data.aws_iam_policy_document.trust.json
  tags               = var.tags
}

resource "aws_iam_role_policy" "head" {
  for_each = {
    autoscaler = data.aws_iam_policy_document.autoscaler.json
    trainer    = data.aws_iam_policy_document.trainer.json
    generator  = data.aws_iam_policy_document.generator.json
  }
  name   = each.key
  role   = aws_iam_role.head.id
  policy = each.value
}

resource "aws_iam_instance_profile" "head" {
  name = "genworker-head"
  role = aws_iam_role.head.name
  tags = var.tags
}
